//! The Python face of the loader: arguments in, core calls without the GIL, results and exceptions out.

mod cancel_token;
mod checkpoint;
mod copy_plan;
mod cuda_device;
mod entry;
mod error;
mod file_info;
mod handle;
mod held;
mod load_report;
mod read;
mod seconds;
mod store;
mod tensor_info;
mod ticket;

/// `quick_model_loader._native`; its Python package re-exports and documents it.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::cancel_token::CancelToken;
    #[pymodule_export]
    use crate::checkpoint::{Checkpoint, inspect};
    #[pymodule_export]
    use crate::copy_plan::{CopyPlan, Placement};
    #[pymodule_export]
    use crate::cuda_device::{CudaDevice, Transfer};
    #[pymodule_export]
    use crate::entry::{Entry, EntryMemory, attach};
    #[pymodule_export]
    use crate::file_info::FileInfo;
    #[pymodule_export]
    use crate::handle::Handle;
    #[pymodule_export]
    use crate::load_report::LoadReport;
    #[pymodule_export]
    use crate::store::{Store, StoreStats};
    #[pymodule_export]
    use crate::tensor_info::TensorInfo;
    #[pymodule_export]
    use crate::ticket::{Progress, Ticket};

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    const BLOCK_BYTES: u64 = quick_model_loader_core::BLOCK_BYTES;

    #[pymodule_export]
    const CHUNK_BYTES: u64 = quick_model_loader_core::CHUNK_BYTES;
}
