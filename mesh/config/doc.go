// Package config is meshd's configuration file: YAML, strict, and every
// setting has a working default, so an empty file is a valid one.
//
// It is pure: Parse reads what it is given, opens nothing, and asks no one
// which interfaces or host name there are; settings left empty say so and the
// agent fills them from the machine. A Config that Parse returned is valid:
// whoever receives one need not check again.
package config
