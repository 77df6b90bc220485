"""The server of `pyvimtrt serve`: Open Inference Protocol over HTTP and gRPC, dynamic batching, engines in processes of
their own.
"""
