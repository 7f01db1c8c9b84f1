"""The tasks as fronts present them: options of requests in, replies out. One module per task, `registry` lists them."""
