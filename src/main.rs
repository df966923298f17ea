//! The program: hands the arguments to the command line's room and gives its exit code back.

fn main() -> std::process::ExitCode {
    promptd::cli::main()
}
