"""Rules of `balance`: which rows of what there is much of stay, by seeded draws."""
