"""`python -m service`: the commands of the server alone."""

from service.cli.main import main

if __name__ == "__main__":
    main()
