"""The parts of `make bench-gossip`: where agents run, what they say, which can run here.

An agent is any program `AGENT NAME IP PORT SEED|-` that speaks lines. It reads

    SET v text    share the value v, with `text` as its padding
    N             tell how many members are live, itself included
    (end)         leave

and writes, each with `time.time_ns()` as its last word,

    R             it is up
    I alias       other agents may call this one `alias`
    S v           the value v is about to be shared
    U node v      another node's value v can be read here
    J node        a node is there (again)
    D node        a node is down or left
    C n           so many members are live
    STATS json    counters (ours alone, without blanks)
"""
