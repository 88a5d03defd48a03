"""The peers: other people's fastest ways to compute a case, one file a peer. The fastest form of a peer counts."""
