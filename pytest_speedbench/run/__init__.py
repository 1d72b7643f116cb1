"""One run from collection to the end: session, schedule, judge, save."""
