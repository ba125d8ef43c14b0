"""The worker: one process per device, torch, driven by the router over gRPC."""
