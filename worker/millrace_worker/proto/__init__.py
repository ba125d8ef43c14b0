"""Generated gRPC stubs of `proto/worker.proto`."""
