"""HTTP service: requests, queue, worker; see `zsad serve --help`."""
