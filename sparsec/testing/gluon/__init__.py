"""A machine of threads that runs printed Gluon."""
