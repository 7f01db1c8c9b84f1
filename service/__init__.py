"""The request path: gRPC gateway, its command line and its Python client. Never imports torch."""
