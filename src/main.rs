//! The program: hands the arguments to the command line room and gives its exit code back.
fn main() {}
