"""Images as sequences of rows: real MNIST, and the embedded digits."""
