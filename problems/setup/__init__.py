"""Makes a problem ready to run, or says what it lacks."""
