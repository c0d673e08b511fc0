"""The engines that read and decode shards; each is imported only when it is chosen."""
