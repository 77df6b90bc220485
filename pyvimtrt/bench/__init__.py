"""Speed of an engine, beside other runtimes in the same run, and against what the machine can do."""
