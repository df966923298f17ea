//! A disk in memory that fails when it is told to.
