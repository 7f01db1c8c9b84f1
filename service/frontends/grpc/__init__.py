"""The gRPC front: VisionService, health and reflection."""
