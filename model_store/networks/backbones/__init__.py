"""One module per model family: pictures in, four feature maps out."""
