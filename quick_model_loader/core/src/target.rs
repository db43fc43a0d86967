//! Memory that a load writes to.

/// A range of memory that belongs to a load until the load is over.
///
/// Invariant (promised to [`Target::new`]): `capacity_bytes` bytes from `address` stay valid for writes while the
/// target exists. Jobs write disjoint parts of it through raw pointers, so no Rust reference to it ever exists.
#[derive(Debug)]
pub struct Target {
    address: *mut u8,
    capacity_bytes: u64,
}

// SAFETY: the target hands out raw pointers only, and `Target::new` asks that any thread may write through them.
unsafe impl Send for Target {}
// SAFETY: as above; `at` reads two immutable fields.
unsafe impl Sync for Target {}

impl Target {
    /// Memory of `capacity_bytes` bytes at `address`.
    ///
    /// # Safety
    ///
    /// The range must be valid for writes from any thread, and nobody may rely on its content, for as long as the
    /// target lives.
    #[must_use]
    pub const unsafe fn new(address: *mut u8, capacity_bytes: u64) -> Self {
        Self { address, capacity_bytes }
    }

    /// The same memory once more.
    ///
    /// # Safety
    ///
    /// As for [`Target::new`].
    pub(crate) const unsafe fn alias(&self) -> Self {
        Self { address: self.address, capacity_bytes: self.capacity_bytes }
    }

    /// The size of the range.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Whether the range starts where direct I/O can land.
    #[must_use]
    pub fn is_block_aligned(&self) -> bool {
        (self.address.addr() as u64).is_multiple_of(crate::BLOCK_BYTES)
    }

    /// The address of the part `offset .. offset + bytes`; `None` if the range does not hold all of it.
    #[must_use]
    pub fn part(&self, offset: u64, bytes: u64) -> Option<*mut u8> {
        let end = offset.checked_add(bytes)?;
        let offset = usize::try_from(offset).ok()?;
        (end <= self.capacity_bytes).then(|| self.address.wrapping_add(offset))
    }
}
