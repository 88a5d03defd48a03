"""The truth: what each graph means in fp64, token by token, independent of the compiler."""
