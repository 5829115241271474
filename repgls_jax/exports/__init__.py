"""Forms in which a trained model leaves this project, one module each; all of them are read again and compared."""
