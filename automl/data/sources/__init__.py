"""One module per data set, each with ``load(request: DataRequest) -> DataSplits``."""
