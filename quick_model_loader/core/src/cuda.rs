//! The CUDA driver, looked up when it is first wanted: the same binary runs with and without it.
//!
//! The driver's own interface rather than the runtime's: a call that fails leaves nothing behind.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;

use crate::width::to_usize;
use crate::{Error, Fault, Result};

/// The library's name where a driver is installed.
pub const LIBRARY: &str = "libcuda.so.1";

/// Memory that all contexts see as pinned.
const HOST_REGISTER_PORTABLE: c_uint = 1;
/// Memory that the device only reads.
const HOST_REGISTER_READ_ONLY: c_uint = 8;
const EVENT_DISABLE_TIMING: c_uint = 2;
const MEMORY_HOST: c_uint = 1;
const MEMORY_DEVICE: c_uint = 2;
const NOT_READY: c_int = 600;

type Context = *mut c_void;
type Event = *mut c_void;
type Stream = *mut c_void;

/// `CUDA_MEMCPY2D` of the driver's interface.
#[repr(C)]
struct Copy2d {
    from_x_bytes: usize,
    from_y: usize,
    from_kind: c_uint,
    from_host: *const c_void,
    from_device: u64,
    from_array: *mut c_void,
    from_pitch: usize,
    to_x_bytes: usize,
    to_y: usize,
    to_kind: c_uint,
    to_host: *mut c_void,
    to_device: u64,
    to_array: *mut c_void,
    to_pitch: usize,
    width_bytes: usize,
    height: usize,
}

/// Declares the functions and how they are looked up in one table.
macro_rules! driver {
    ($($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The functions of a driver.
        #[derive(Debug)]
        pub struct Driver {
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
            error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
        }

        impl Driver {
            fn look_up(library: &Library) -> Result<Self> {
                Ok(Self {
                    $($field: {
                        let symbol = library.symbol($symbol)?;
                        // SAFETY: the driver's interface gives the symbol this type.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_int>(symbol) }
                    },)*
                    error_name: {
                        let symbol = library.symbol("cuGetErrorName")?;
                        // SAFETY: as above.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>(symbol) }
                    },
                })
            }
        }
    };
}

driver! {
    init = "cuInit" (c_uint);
    device_get = "cuDeviceGet" (*mut c_int, c_int);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut Context, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2" (c_int);
    context_push = "cuCtxPushCurrent_v2" (Context);
    context_pop = "cuCtxPopCurrent_v2" (*mut Context);
    host_register = "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister" (*mut c_void);
    host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" (*mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, Stream);
    copy_2d = "cuMemcpy2DAsync_v2" (*const Copy2d, Stream);
    stream_synchronize = "cuStreamSynchronize" (Stream);
    event_create = "cuEventCreate" (*mut Event, c_uint);
    event_record = "cuEventRecord" (Event, Stream);
    event_query = "cuEventQuery" (Event);
    event_synchronize = "cuEventSynchronize" (Event);
    event_destroy = "cuEventDestroy_v2" (Event);
}

/// A library that stays open: drivers do not like to be unloaded.
struct Library {
    handle: *mut c_void,
    name: String,
}

impl Library {
    fn open(name: &str) -> Result<Self> {
        let missing = |why: String| Error::new(Path::new(""), Fault::NoCuda(why));
        let text = CString::new(name).map_err(|error| missing(error.to_string()))?;
        // SAFETY: a C string that outlives the call; the library's initializers are trusted like the driver itself.
        let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(missing(last_dl_error()));
        }
        Ok(Self { handle, name: name.to_owned() })
    }

    fn symbol(&self, name: &str) -> Result<*mut c_void> {
        let missing = || Error::new(Path::new(""), Fault::NoCuda(format!("{} lacks {name}", self.name)));
        let text = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the handle is open, the name a C string.
        let symbol = unsafe { libc::dlsym(self.handle, text.as_ptr()) };
        if symbol.is_null() { Err(missing()) } else { Ok(symbol) }
    }
}

fn last_dl_error() -> String {
    // SAFETY: dlerror returns null or a string that stays valid until this thread's next call of its kind.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Driver {
    /// Opens `library` and initializes it.
    ///
    /// # Errors
    ///
    /// [`Fault::NoCuda`] or [`Fault::Cuda`].
    fn open(library: &str) -> Result<Self> {
        let driver = Self::look_up(&Library::open(library)?)?;
        // SAFETY: the call takes a number only.
        driver.check("cuInit", unsafe { (driver.init)(0) })?;
        Ok(driver)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: the driver writes the address of a constant, or nothing.
        let found = unsafe { (self.error_name)(code, &raw mut name) };
        let name = if found == 0 && !name.is_null() {
            // SAFETY: a constant C string.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        } else {
            "unknown error".to_owned()
        };
        Err(Error::new(Path::new(""), Fault::Cuda { call, name, code }))
    }
}

/// A device's primary context, shared with everybody else in the process who uses the device.
#[derive(Debug)]
pub struct Primary {
    driver: Driver,
    device: c_int,
    context: Context,
}

// SAFETY: a context may be used by any thread that makes it current first, which every method here does.
unsafe impl Send for Primary {}
// SAFETY: as above; the driver's functions are thread-safe.
unsafe impl Sync for Primary {}

impl Primary {
    /// The context of device number `ordinal` of the driver in `library`.
    ///
    /// # Errors
    ///
    /// [`Fault::NoCuda`] or [`Fault::Cuda`].
    pub fn open(library: &str, ordinal: u32) -> Result<Self> {
        let driver = Driver::open(library)?;
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let mut device = 0;
        // SAFETY: the driver writes one number.
        driver.check("cuDeviceGet", unsafe { (driver.device_get)(&raw mut device, ordinal) })?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver writes one pointer.
        let code = unsafe { (driver.context_retain)(&raw mut context, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Self { driver, device, context })
    }

    /// Runs `call` with this context current.
    fn with<R>(&self, call: impl FnOnce(&Driver) -> Result<R>) -> Result<R> {
        // SAFETY: the context was retained and not released yet.
        let code = unsafe { (self.driver.context_push)(self.context) };
        self.driver.check("cuCtxPushCurrent", code)?;
        let result = call(&self.driver);
        let mut popped = std::ptr::null_mut();
        // SAFETY: the driver writes one pointer: the context that was pushed above.
        let code = unsafe { (self.driver.context_pop)(&raw mut popped) };
        let restored = self.driver.check("cuCtxPopCurrent", code);
        result.and_then(|value| restored.map(|()| value))
    }

    /// Pins memory, so that the device can read it by itself.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    ///
    /// # Safety
    ///
    /// The memory must stay mapped until it is unregistered.
    pub unsafe fn register(&self, address: *mut u8, bytes: usize, is_read_only: bool) -> Result<()> {
        let flags = HOST_REGISTER_PORTABLE | if is_read_only { HOST_REGISTER_READ_ONLY } else { 0 };
        self.with(|driver| {
            // SAFETY: the caller vouches for the memory.
            let code = unsafe { (driver.host_register)(address.cast(), bytes, flags) };
            driver.check("cuMemHostRegister", code)
        })
    }

    /// Undoes [`Primary::register`].
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    pub fn unregister(&self, address: *mut u8) -> Result<()> {
        self.with(|driver| {
            // SAFETY: the driver refuses addresses that were not registered.
            driver.check("cuMemHostUnregister", unsafe { (driver.host_unregister)(address.cast()) })
        })
    }

    /// New pinned memory.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    pub fn allocate(&self, bytes: usize) -> Result<*mut u8> {
        self.with(|driver| {
            let mut address = std::ptr::null_mut();
            // SAFETY: the driver writes one pointer.
            let code = unsafe { (driver.host_alloc)(&raw mut address, bytes, HOST_REGISTER_PORTABLE) };
            driver.check("cuMemHostAlloc", code)?;
            Ok(address.cast())
        })
    }

    /// Frees what [`Primary::allocate`] gave.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    ///
    /// # Safety
    ///
    /// No copy may be reading from it.
    pub unsafe fn free(&self, address: *mut u8) -> Result<()> {
        self.with(|driver| {
            // SAFETY: the caller vouches for it.
            driver.check("cuMemFreeHost", unsafe { (driver.host_free)(address.cast()) })
        })
    }

    /// Has the device copy `rows` rows when all that `stream` has to do before is done.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    ///
    /// # Safety
    ///
    /// Source and target must be valid, and the source unchanged, until the copy is done.
    pub unsafe fn copy(&self, from: *const u8, part: &crate::Move, stream: u64) -> Result<()> {
        let stream = to_usize(stream) as Stream;
        self.with(|driver| {
            if part.rows == 1 {
                // SAFETY: the caller vouches for both sides.
                let code = unsafe {
                    (driver.copy_to_device)(part.to, from.cast(), to_usize(part.row_bytes), stream)
                };
                return driver.check("cuMemcpyHtoDAsync", code);
            }
            let request = Copy2d {
                from_x_bytes: 0,
                from_y: 0,
                from_kind: MEMORY_HOST,
                from_host: from.cast(),
                from_device: 0,
                from_array: std::ptr::null_mut(),
                from_pitch: to_usize(part.from_pitch),
                to_x_bytes: 0,
                to_y: 0,
                to_kind: MEMORY_DEVICE,
                to_host: std::ptr::null_mut(),
                to_device: part.to,
                to_array: std::ptr::null_mut(),
                to_pitch: to_usize(part.to_pitch),
                width_bytes: to_usize(part.row_bytes),
                height: to_usize(part.rows),
            };
            // SAFETY: the structure has the driver's layout; the caller vouches for both sides.
            driver.check("cuMemcpy2DAsync", unsafe { (driver.copy_2d)(&raw const request, stream) })
        })
    }

    /// Waits for all that `stream` has to do.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    pub fn finish(&self, stream: u64) -> Result<()> {
        self.with(|driver| {
            // SAFETY: the driver checks the stream.
            let code = unsafe { (driver.stream_synchronize)(to_usize(stream) as Stream) };
            driver.check("cuStreamSynchronize", code)
        })
    }

    /// An event that has not been recorded.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    pub fn event(&self) -> Result<u64> {
        self.with(|driver| {
            let mut event = std::ptr::null_mut();
            // SAFETY: the driver writes one pointer.
            let code = unsafe { (driver.event_create)(&raw mut event, EVENT_DISABLE_TIMING) };
            driver.check("cuEventCreate", code)?;
            Ok(event as usize as u64)
        })
    }

    /// Has the event happen when all that `stream` has to do so far is done.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`].
    pub fn record(&self, event: u64, stream: u64) -> Result<()> {
        self.with(|driver| {
            // SAFETY: the event is one of this context's; the driver checks the stream.
            let code = unsafe { (driver.event_record)(to_usize(event) as Event, to_usize(stream) as Stream) };
            driver.check("cuEventRecord", code)
        })
    }

    /// Whether the event happened (or never was recorded).
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`]: also what a copy before it failed of.
    pub fn has_happened(&self, event: u64) -> Result<bool> {
        self.with(|driver| {
            // SAFETY: the event is one of this context's.
            match unsafe { (driver.event_query)(to_usize(event) as Event) } {
                NOT_READY => Ok(false),
                code => driver.check("cuEventQuery", code).map(|()| true),
            }
        })
    }

    /// Waits for the event.
    ///
    /// # Errors
    ///
    /// As [`Primary::has_happened`].
    pub fn wait(&self, event: u64) -> Result<()> {
        self.with(|driver| {
            // SAFETY: the event is one of this context's.
            driver
                .check("cuEventSynchronize", unsafe { (driver.event_synchronize)(to_usize(event) as Event) })
        })
    }

    /// Gives the event back.
    pub fn destroy(&self, event: u64) {
        // It fails only where the whole context is lost already.
        let _ = self.with(|driver| {
            // SAFETY: the event is one of this context's, and its owner uses it no more.
            driver.check("cuEventDestroy", unsafe { (driver.event_destroy)(to_usize(event) as Event) })
        });
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: retained once, released once.
        unsafe { (self.driver.context_release)(self.device) };
    }
}
