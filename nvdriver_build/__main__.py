"""`python -m nvdriver_build`."""

from nvdriver_build.cli import main

if __name__ == "__main__":
    main()
