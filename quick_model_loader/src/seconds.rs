//! Times that Python gives as numbers.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Longer than any process lives.
const FOREVER_S: f64 = 1e10;

/// So many seconds; not a number, or less than none, is a mistake.
pub fn duration(seconds: f64) -> PyResult<Duration> {
    // Infinity is a long time; `min` would take what is no number for one, too.
    let seconds = if seconds == f64::INFINITY { FOREVER_S } else { seconds };
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{seconds} is no number of seconds to wait")))
}
