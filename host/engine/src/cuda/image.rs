//! stub
pub(crate) struct Image {
    pub(crate) bytes: &'static [u8],
}
impl Image {
    pub(crate) fn has(&self, k: super::kernels::Kernel) -> bool {
        k != super::kernels::Kernel::GemmWgmma
    }
}
pub(crate) fn image_for(_c: (u32, u32)) -> Result<Image, crate::EngineError> {
    Ok(Image { bytes: b"//\0" })
}
