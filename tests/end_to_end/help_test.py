"""--help of every command: what it is for, and an example whose options exist."""

import re
import unittest

from command import Case


class Help(Case):
    def test_every_command_has_an_example_that_its_options_allow(self):
        listed = self.succeed("--help").split("Subcommands:")[1]
        commands = re.findall(r"(?m)^  (\w+)\s", listed)
        self.assertLessEqual({"train", "generate", "verify", "inspect"}, set(commands))
        for command in commands:
            text = self.succeed(command, "--help")
            usage, example = re.split("Examples?:", text)
            self.assertRegex(example, rf"\A\s+phalanx {command} ")
            for option in re.findall(r"--[\w-]+", example):
                self.assertRegex(usage, rf"(?m)^  (-\w,)?{option}\b")

    def test_the_version(self):
        self.assertRegex(self.succeed("--version"), r"\Aphalanx \d+\.\d+\.\d+\n\Z")


if __name__ == "__main__":
    unittest.main()
