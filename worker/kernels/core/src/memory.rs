//! Memory for what is read as a stream in every step: large pages where the system has them.
//!
//! A large page takes one entry of the CPU's address cache where small ones take 512, and the hardware reads ahead within
//! pages only. Fresh memory is asked for: pages that have been touched once stay small.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// The alignment: a cache line.
pub const LINE: usize = 64;

/// Bytes, uninitialized, aligned to a cache line.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    held: Held,
}

/// What to give back, and how.
#[derive(Debug)]
enum Held {
    Allocated(Layout),
    #[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
    Mapped(linux::Mapping),
}

// SAFETY: owned memory; who writes and who reads it is decided by its owner.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Panics when `bytes` is 0.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes > 0, "memory of no bytes");
        #[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
        if bytes >= linux::LARGE_PAGE
            && let Some((start, mapping)) = linux::map(bytes)
        {
            return Self { start, held: Held::Mapped(mapping) };
        }
        let layout = Layout::from_size_align(bytes, LINE).expect("what the address space holds has a layout");
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, held: Held::Allocated(layout) }
    }

    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.held {
            // SAFETY: allocated in `new` with this layout.
            Held::Allocated(layout) => unsafe { dealloc(self.start.as_ptr(), *layout) },
            #[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
            Held::Mapped(mapping) => mapping.unmap(),
        }
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod linux {
    use std::ffi::{c_int, c_void};
    use std::ptr::{NonNull, null_mut};

    pub(super) const LARGE_PAGE: usize = 2 << 20;
    const PROT_READ_WRITE: c_int = 1 | 2;
    const MAP_PRIVATE_ANONYMOUS: c_int = 0x02 | 0x20;
    const MADV_HUGEPAGE: c_int = 14;

    unsafe extern "C" {
        fn mmap(at: *mut c_void, len: usize, prot: c_int, flags: c_int, file: c_int, offset: i64) -> *mut c_void;
        fn munmap(at: *mut c_void, len: usize) -> c_int;
        fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    }

    /// What the system gave.
    #[derive(Debug)]
    pub(super) struct Mapping {
        at: *mut c_void,
        len: usize,
    }

    impl Mapping {
        pub(super) fn unmap(&self) {
            // SAFETY: mapped by `map`, and nobody's any more.
            let _ = unsafe { munmap(self.at, self.len) };
        }
    }

    /// Fresh memory that begins at a large page. What is left at its end stays in small pages: none is taken in vain.
    pub(super) fn map(bytes: usize) -> Option<(NonNull<u8>, Mapping)> {
        let len = bytes.checked_add(LARGE_PAGE)?;
        // SAFETY: no address is asked for, so none is taken away.
        let at = unsafe { mmap(null_mut(), len, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0) };
        if at.addr() == usize::MAX {
            return None;
        }
        let start = at.wrapping_byte_add(at.addr().next_multiple_of(LARGE_PAGE) - at.addr());
        // SAFETY: within the mapping. Advice that is not taken changes nothing.
        let _ = unsafe { madvise(start, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE) };
        Some((NonNull::new(start.cast())?, Mapping { at, len }))
    }
}
