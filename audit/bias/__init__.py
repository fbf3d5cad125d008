"""Who is served worse: groups, sites, words."""
