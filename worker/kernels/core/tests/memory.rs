//! Memory of every kind, the allocator's and large pages.

use millrace_kernels_core::memory::{LINE, Memory};

#[test]
fn memory_of_any_size_is_aligned_and_ours() {
    for bytes in [1, 63, 4096, (2 << 20) - 1, 2 << 20, (5 << 20) + 17] {
        let memory = Memory::new(bytes);
        assert!(memory.start().addr().is_multiple_of(LINE), "{bytes} bytes");
        for at in [0, bytes / 2, bytes - 1] {
            // SAFETY: within the memory.
            unsafe {
                memory.start().add(at).write(7);
                assert_eq!(memory.start().add(at).read(), 7);
            }
        }
    }
}
