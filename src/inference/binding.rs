//! One run of the graph over memory that belongs to promptd: inputs and outputs are views into our own buffers, so
//! that the KV cache is neither copied nor allocated by ONNX Runtime. The only place that calls its C interface.
//!
//! The safe wrapper cannot do this: it clones tensors made from borrowed memory and takes no views as outputs.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;

use ort::AsPointer;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, NoSelectedOutputs, RunOptions, Session};
use ort::sys::{ONNXTensorElementDataType as ElementType, OrtValue};

use super::cuda::OnGpu;
use super::kv_gpu::ElementKind;

/// A number that tensors are made of.
pub(super) trait Element: Copy + private::Sealed {
    /// What ONNX calls it.
    const TYPE: ElementType;
}

mod private {
    pub(crate) trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i64 {}
    impl Sealed for u16 {}
    impl Sealed for i8 {}
    impl Sealed for u8 {}
    impl Sealed for bool {}
}

impl Element for f32 {
    const TYPE: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

impl Element for i64 {
    const TYPE: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
}

/// The bits of a half-precision float; promptd holds no other tensors of 16 bits.
impl Element for u16 {
    const TYPE: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

impl Element for i8 {
    const TYPE: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
}

impl Element for u8 {
    const TYPE: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

impl Element for bool {
    const TYPE: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
}

/// A run that is being put together. It borrows every buffer it reads or writes until it is over.
pub(super) struct Step<'a> {
    binding: IoBinding,
    memory: MemoryInfo<'static>,
    values: Vec<NonNull<OrtValue>>,
    buffers: PhantomData<&'a mut [f32]>,
}

impl<'a> Step<'a> {
    /// An empty run.
    pub(super) fn new(session: &Session) -> ort::Result<Self> {
        let memory =
            MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        Ok(Step {
            binding: session.create_binding()?,
            memory,
            values: Vec::new(),
            buffers: PhantomData,
        })
    }

    /// The graph reads `data` as a tensor of this shape.
    pub(super) fn input<T: Element>(
        &mut self,
        name: &CStr,
        data: &'a [T],
        shape: &[i64],
    ) -> ort::Result<()> {
        let value = self.view(data.as_ptr().cast_mut(), data.len(), shape)?;
        self.bind_input(name, value)
    }

    /// The graph writes a tensor of this shape into `data`.
    pub(super) fn output<T: Element>(
        &mut self,
        name: &CStr,
        data: &'a mut [T],
        shape: &[i64],
    ) -> ort::Result<()> {
        let value = self.view(data.as_mut_ptr(), data.len(), shape)?;
        self.bind_output(name, value)
    }

    /// The graph reads and writes the same memory. Only for graphs made for it (`GroupQueryAttention`'s past and present).
    pub(super) fn in_place<T: Element>(
        &mut self,
        (input, output): (&CStr, &CStr),
        data: &'a mut [T],
        shape: &[i64],
    ) -> ort::Result<()> {
        let value = self.view(data.as_mut_ptr(), data.len(), shape)?;
        self.bind_input(input, value)?;
        self.bind_output(output, value)
    }

    /// As [`Step::in_place`], in memory of the GPU.
    pub(super) fn in_place_on_gpu(
        &mut self,
        (input, output): (&CStr, &CStr),
        data: &OnGpu<'a>,
        element: ElementKind,
        shape: &[i64],
    ) -> ort::Result<()> {
        let memory =
            MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?;
        let length = data.bytes() / element.bytes;
        let address = usize::try_from(data.address())
            .map_err(|_| ort::Error::new("the GPU has an address that is no pointer here"))?;
        let data = std::ptr::without_provenance_mut(address);
        let value = self.keep(tensor((data, length, element), shape, &memory)?);
        self.bind_input(input, value)?;
        self.bind_output(output, value)
    }

    /// Runs the graph and ends all borrows. Whoever shares the options can end the run.
    pub(super) fn run(
        self,
        session: &mut Session,
        options: &RunOptions<NoSelectedOutputs>,
    ) -> ort::Result<()> {
        let (session, binding) = (session.ptr().cast_mut(), self.binding.ptr());
        let options = options.ptr();
        #[expect(unsafe_code, reason = "the C interface")]
        // SAFETY: the session is borrowed exclusively and the binding was made from it; every bound value points into a
        // buffer that is borrowed until `self` is dropped below. The options are borrowed, and only read by the run.
        let status = unsafe { (ort::api().RunWithBinding)(session, options, binding) };
        check(status)
    }

    fn view<T: Element>(
        &mut self,
        data: *mut T,
        length: usize,
        shape: &[i64],
    ) -> ort::Result<NonNull<OrtValue>> {
        let value = tensor((data.cast(), length, ElementKind::of::<T>()), shape, &self.memory)?;
        Ok(self.keep(value))
    }

    /// Releases a value when the step is dropped.
    fn keep(&mut self, value: NonNull<OrtValue>) -> NonNull<OrtValue> {
        self.values.push(value);
        value
    }

    fn bind_input(&mut self, name: &CStr, value: NonNull<OrtValue>) -> ort::Result<()> {
        let binding = self.binding.ptr().cast_mut();
        #[expect(unsafe_code, reason = "the C interface")]
        // SAFETY: binding, name and value are alive; ONNX Runtime copies the name and shares the value.
        let status = unsafe { (ort::api().BindInput)(binding, name.as_ptr(), value.as_ptr()) };
        check(status)
    }

    fn bind_output(&mut self, name: &CStr, value: NonNull<OrtValue>) -> ort::Result<()> {
        let binding = self.binding.ptr().cast_mut();
        #[expect(unsafe_code, reason = "the C interface")]
        // SAFETY: as for inputs.
        let status = unsafe { (ort::api().BindOutput)(binding, name.as_ptr(), value.as_ptr()) };
        check(status)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        // The binding shares the values; it lets go of them first, so that none is left that points at freed memory.
        self.binding.clear();
        for value in self.values.drain(..) {
            #[expect(unsafe_code, reason = "the C interface")]
            // SAFETY: made by `tensor` for this step, released nowhere else.
            unsafe {
                (ort::api().ReleaseValue)(value.as_ptr());
            }
        }
    }
}

/// A tensor over memory that belongs to whoever calls, who holds it borrowed for as long as the tensor is used: `length`
/// elements from `data` on.
fn tensor(
    (data, length, element): (*mut c_void, usize, ElementKind),
    shape: &[i64],
    memory: &MemoryInfo<'_>,
) -> ort::Result<NonNull<OrtValue>> {
    let elements =
        shape.iter().try_fold(1_usize, |all, dim| all.checked_mul(usize::try_from(*dim).ok()?));
    if elements != Some(length) {
        return Err(ort::Error::new(format!(
            "a buffer of {length} elements cannot have the shape {shape:?}"
        )));
    }
    let mut value: *mut OrtValue = std::ptr::null_mut();
    let bytes = length * element.bytes;
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: `data` is valid for `bytes` bytes, because the shape has exactly `length` elements, and stays borrowed for the
    // step's 'a, which the value does not outlive (it is released when the step is dropped); nothing is read or written by
    // this call. All other pointers are to locals that live through it.
    let status = unsafe {
        (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            data,
            bytes,
            shape.as_ptr(),
            shape.len(),
            element.kind,
            &raw mut value,
        )
    };
    check(status)?;
    NonNull::new(value).ok_or_else(|| ort::Error::new("ONNX Runtime made no tensor"))
}

fn check(status: ort::sys::OrtStatusPtr) -> ort::Result<()> {
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: the status comes straight from a call of the C interface and is given away here.
    unsafe {
        ort::Error::<()>::result_from_status(status)
    }
}
