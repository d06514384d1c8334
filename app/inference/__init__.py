"""From a subject's present sequences to the missing one."""
