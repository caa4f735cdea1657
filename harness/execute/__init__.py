"""Where jobs run. An executor only places worker processes; order, retry, cache and logs are the driver's."""
