"""Verbs: each reads words, prints answers, and decides nothing.

LIFE      `main` finds the verb and imports its module only, so that a start is quick. A module has one function a
          verb, from words to exit code.
OWNERS    One thread, before there is any other.
TRUST     The operator's words; what a daemon answers is printed, with what a guest could have chosen escaped.
FAILURE   0 done, 1 failed, 2 the words are wrong, 3 no daemon answers, 4 not permitted, 6 the configuration is invalid.
          The reason is one line on stderr, never a traceback: ConfigError texts say what to do.
NOT HERE  What settings there are (config), how a device is run (daemon, supervisor).
"""
