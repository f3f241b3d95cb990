"""A module for each chapter of the two documents, a case for each rule that a front-end can observe.

LIFE      Modules are imported when cases are asked for; importing registers them.
OWNERS    A case owns nothing but what it opened through its Check.
TRUST     As everywhere in driver/.
FAILURE   As conformance/ says.
NOT HERE  Helpers that two chapters share: they are Check's and Guest's.
"""
