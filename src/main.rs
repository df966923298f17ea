//! The program: everything is in the library; here is only the way in.

fn main() -> std::process::ExitCode {
    for (name, value) in promptd::engine::FOR_ONNXRUNTIME {
        #[expect(unsafe_code, reason = "the environment of this process")]
        #[expect(clippy::disallowed_methods, reason = "a library has no other way to be told")]
        // SAFETY: no other thread runs yet that could read the environment meanwhile.
        unsafe {
            std::env::set_var(name, value);
        }
    }
    promptd::cli::main()
}
