"""What commands and Python calls do where nothing else is said. Imports nothing, for the help of the commands."""

AUTO = "auto"  # the best backend that can run the file here
TOPK = 5  # classes of an image
BATCH = 32  # images run at a time by eval and compare

CALIBRATION_IMAGES = 256  # enough: more change nothing that was measured
FEW_CALIBRATION_IMAGES = 128  # fewer have cost accuracy (docs/method.md, Calibration)
RECIPE = "default"

SYNTHETIC_IMAGES = 128
METHOD = "output"  # of making them

ATTRIBUTION = "kinds"  # what compare measures the cost of
ATTRIBUTION_IMAGES = 64

BENCH_BATCH = 1
BENCH_ROUNDS = 30

HOST = "127.0.0.1"
PORT, GRPC_PORT = 8000, 8001
DEADLINE_MS = 2.0
BODY_MIB = 32  # of a request
BODIES_MIB = 256  # of all requests that are read or wait, at least
IMAGE_PIXELS = 25_000_000  # of an encoded image that a server takes
CONNECTIONS = 1024
REQUEST_SECONDS, HEADER_SECONDS, DRAIN_SECONDS = 30.0, 10.0, 30.0
LOG_LEVEL = "info"

REPLICA_CPUS, REPLICA_GPUS = 4, 1  # of KServe
MIN_REPLICAS, MAX_REPLICAS = 1, 8
TRITON_INSTANCES = 1
