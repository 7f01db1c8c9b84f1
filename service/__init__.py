"""The server: gRPC gateway, engines that run models, command line. Never imports torch."""
