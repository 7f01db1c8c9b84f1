"""The data contracts between build, gateway and worker. Shipped in every archive; never imports torch."""
