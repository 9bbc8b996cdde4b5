"""Initial values that several building blocks share."""

# Standard deviation of the random weights that `init_weights=False` asks for: large enough that an adapter which is
# wired wrongly shows in the output, small enough that deep models stay finite.
RANDOM_INIT_STD = 0.05
