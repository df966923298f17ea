//! Memory as the system has it: model files mapped for walking a graph, checksumming weights and having their pages ready
//! before ONNX Runtime maps the same file; and memory given back. The only place that maps files.

use std::fs::File;
use std::path::Path;

use super::error::LoadError;

/// A file's bytes, read on demand by the system.
#[derive(Debug)]
pub(super) struct Mapped(Option<memmap2::Mmap>);

impl Mapped {
    /// Maps a file that was already found to be a plain one.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let read = |source| LoadError::Read { path: path.into(), source };
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.len() == 0 {
            // A mapping of no bytes is an error to the system.
            return Ok(Mapped(None));
        }
        #[expect(
            unsafe_code,
            reason = "mapping a file is unsafe by nature; there is no other way to share pages with ONNX Runtime"
        )]
        // SAFETY: the file must not be cut short while it is mapped. Model folders are installed by rename and not
        // written by anyone while the service runs; if it happens all the same, the engine dies of SIGBUS and is
        // replaced, which is why it is a process of its own.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read)?;
        Ok(Mapped(Some(map)))
    }

    /// Tells the system that the bytes will be read from front to back soon, so that it fetches them ahead.
    pub(super) fn warm(&self) {
        if let Some(map) = &self.0 {
            // Advice: where it is not taken, loading is only slower.
            let _ = map.advise(memmap2::Advice::Sequential);
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

/// Gives the system back what was freed. glibc's allocator keeps freed memory below the last block in use; a tokenizer's
/// JSON and a graph's initializers leave megabytes of it, as chance has it.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the allocator is the C library's; nothing wraps this call")]
        // SAFETY: takes the allocator's own locks and only frees pages that no allocation lies in.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
