//! Memory of an NVIDIA GPU, by the driver's own interface: ONNX Runtime has no call that copies rows within it. The driver is
//! there wherever the provider for CUDA loads, and its interface has stayed the same since CUDA 4.
//!
//! <https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html>

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::marker::PhantomData;
use std::sync::Arc;

use libloading::Library;

use super::kv_gpu::{Block, Memory, Place};

/// What a call of the driver gives: 0 where it succeeded (`CUresult`).
type Status = c_int;
/// `CUdeviceptr`.
type Address = u64;
/// `CUcontext`: a pointer that means something to the driver only.
type Context = usize;

/// A block of rows that is copied: `CUDA_MEMCPY2D` of `cuda.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct Copy2d {
    from_x: usize,
    from_y: usize,
    from_kind: c_uint,
    from_host: usize,
    from_device: Address,
    from_array: usize,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_kind: c_uint,
    to_host: usize,
    to_device: Address,
    to_array: usize,
    to_pitch: usize,
    width: usize,
    height: usize,
}

/// `CU_MEMORYTYPE_DEVICE`.
const ON_DEVICE: c_uint = 2;

/// The calls that are used, and the library that they live in.
struct Driver {
    retain: unsafe extern "C" fn(*mut Context, c_int) -> Status,
    release: unsafe extern "C" fn(c_int) -> Status,
    make_current: unsafe extern "C" fn(Context) -> Status,
    allocate: unsafe extern "C" fn(*mut Address, usize) -> Status,
    free: unsafe extern "C" fn(Address) -> Status,
    fill: unsafe extern "C" fn(Address, u8, usize) -> Status,
    copy: unsafe extern "C" fn(*const Copy2d) -> Status,
    wait: unsafe extern "C" fn() -> Status,
    left: unsafe extern "C" fn(*mut usize, *mut usize) -> Status,
    words: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
    _library: Library,
}

/// The first GPU, which is also the one that ONNX Runtime takes (`CUDA_VISIBLE_DEVICES` says which that is).
const DEVICE: c_int = 0;

/// A GPU. The context is the one that ONNX Runtime uses as well, so that its kernels see what is allocated here.
pub(super) struct Gpu {
    driver: Driver,
    context: Context,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("device", &DEVICE).finish_non_exhaustive()
    }
}

impl Gpu {
    /// The GPU that ONNX Runtime has just made a session for.
    ///
    /// # Errors
    /// In words, where the driver is not there or refuses.
    pub(super) fn open() -> Result<Arc<Gpu>, String> {
        let driver = Driver::open()?;
        let mut context: Context = 0;
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: ONNX Runtime initialised the driver when it made its session; the pointer is to a local.
        let status = unsafe { (driver.retain)(&raw mut context, DEVICE) };
        driver.check("cannot be used", status)?;
        Ok(Arc::new(Gpu { driver, context }))
    }

    /// Lets this thread's calls mean this GPU.
    fn enter(&self) -> Result<(), String> {
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: the context is retained until `self` is dropped.
        let status = unsafe { (self.driver.make_current)(self.context) };
        self.driver.check("cannot be used", status)
    }

    /// Bytes that are left, and that there are.
    fn left(&self) -> Option<(usize, usize)> {
        let (mut left, mut all) = (0, 0);
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: the pointers are to locals.
        let status = unsafe { (self.driver.left)(&raw mut left, &raw mut all) };
        (status == 0).then_some((left, all))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: retained once, in `open`; no buffer is left, since each holds the GPU.
        unsafe {
            (self.driver.release)(DEVICE);
        }
    }
}

/// Memory on a GPU.
#[derive(Debug)]
pub(super) struct Buffer {
    gpu: Arc<Gpu>,
    address: Address,
    bytes: usize,
}

/// A part of a buffer, for as long as the buffer is borrowed. Made here only, so that it always lies within one.
#[derive(Debug)]
pub(super) struct OnGpu<'a> {
    address: Address,
    bytes: usize,
    buffer: PhantomData<&'a mut Buffer>,
}

impl OnGpu<'_> {
    /// Where it begins, in the GPU's addresses.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Buffer {
    /// The address of a place from which a block lies within the buffer.
    fn place(place: &Place<'_, Buffer>, block: Block) -> Result<Address, String> {
        let lines = block.height.saturating_sub(1).checked_mul(place.pitch);
        let end = lines.and_then(|to| to.checked_add(place.at)?.checked_add(block.width));
        let begin =
            u64::try_from(place.at).ok().and_then(|at| place.buffer.address.checked_add(at));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= place.buffer.bytes => Ok(begin),
            _ => Err("rows of the cache lie outside of its memory".to_owned()),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            #[expect(unsafe_code, reason = "the driver's interface")]
            // SAFETY: allocated in `zeroed` and freed nowhere else; what read or wrote it was waited for.
            unsafe {
                (self.gpu.driver.free)(self.address);
            }
        }
    }
}

impl Memory for Arc<Gpu> {
    type Buffer = Buffer;

    fn zeroed(&self, bytes: usize) -> Result<Buffer, String> {
        self.enter()?;
        let mut address = 0;
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: the pointer is to a local.
        let status = unsafe { (self.driver.allocate)(&raw mut address, bytes) };
        self.driver.check("has no room", status).map_err(|error| match self.left() {
            Some((left, all)) => {
                format!("{error}: {bytes} bytes more were wanted, {left} of {all} are left")
            }
            None => error,
        })?;
        let buffer = Buffer { gpu: Arc::clone(self), address, bytes };
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: so many bytes were just allocated there.
        let status = unsafe { (self.driver.fill)(address, 0, bytes) };
        self.driver.check("cannot be written to", status)?;
        Ok(buffer)
    }

    fn copy(
        &self,
        from: Place<'_, Buffer>,
        to: Place<'_, Buffer>,
        block: Block,
    ) -> Result<(), String> {
        if block.width == 0 || block.height == 0 {
            return Ok(());
        }
        self.enter()?;
        let what = Copy2d {
            from_kind: ON_DEVICE,
            from_device: Buffer::place(&from, block)?,
            from_pitch: from.pitch,
            to_kind: ON_DEVICE,
            to_device: Buffer::place(&to, block)?,
            to_pitch: to.pitch,
            width: block.width,
            height: block.height,
            ..Copy2d::default()
        };
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: both blocks lie within their buffers, as was checked; the description is a local.
        let status = unsafe { (self.driver.copy)(&raw const what) };
        self.driver.check("cannot copy", status)
    }

    fn wait(&self) -> Result<(), String> {
        self.enter()?;
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: takes nothing.
        let status = unsafe { (self.driver.wait)() };
        self.driver.check("failed", status)
    }

    fn view(buffer: &mut Buffer, at: usize, bytes: usize) -> Option<OnGpu<'_>> {
        let end = at.checked_add(bytes)?;
        let address = buffer.address.checked_add(u64::try_from(at).ok()?)?;
        (end <= buffer.bytes).then_some(OnGpu { address, bytes, buffer: PhantomData })
    }
}

impl Driver {
    fn open() -> Result<Driver, String> {
        let name = "libcuda.so.1";
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: the driver is loaded already, by the provider that uses it; its initialisers ran.
        let library = unsafe { Library::new(name) }.map_err(|error| error.to_string())?;
        Ok(Driver {
            retain: call(&library, c"cuDevicePrimaryCtxRetain")?,
            release: call(&library, c"cuDevicePrimaryCtxRelease_v2")?,
            make_current: call(&library, c"cuCtxSetCurrent")?,
            allocate: call(&library, c"cuMemAlloc_v2")?,
            free: call(&library, c"cuMemFree_v2")?,
            fill: call(&library, c"cuMemsetD8_v2")?,
            copy: call(&library, c"cuMemcpy2DUnaligned_v2")?,
            wait: call(&library, c"cuCtxSynchronize")?,
            left: call(&library, c"cuMemGetInfo_v2")?,
            words: call(&library, c"cuGetErrorString")?,
            _library: library,
        })
    }

    /// An error, with the driver's own words, where a call failed.
    fn check(&self, failed: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut words: *const c_char = std::ptr::null();
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: the pointer is to a local; the driver sets it to a constant or to nothing.
        let known = unsafe { (self.words)(status, &raw mut words) };
        if known != 0 || words.is_null() {
            return Err(format!("the GPU {failed} (CUDA error {status})"));
        }
        #[expect(unsafe_code, reason = "the driver's interface")]
        // SAFETY: a constant of the driver that ends with a zero.
        let words = unsafe { CStr::from_ptr(words) };
        Err(format!("the GPU {failed} (CUDA error {status}: {})", words.to_string_lossy()))
    }
}

/// A call of the driver. The type that it is asked for as is the one in `cuda.h`.
fn call<T: Copy>(library: &Library, name: &CStr) -> Result<T, String> {
    #[expect(unsafe_code, reason = "the driver's interface")]
    // SAFETY: each name is asked for with the type that `cuda.h` gives it, and the library is kept beside it.
    let symbol = unsafe { library.get::<T>(name.to_bytes_with_nul()) };
    symbol.map(|symbol| *symbol).map_err(|error| error.to_string())
}
