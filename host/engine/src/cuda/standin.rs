pub(crate) fn load() -> bool {
    false
}
