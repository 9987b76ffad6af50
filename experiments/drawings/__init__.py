"""Made-up drawings of digits: how well pictures that are not MNIST's are read."""
