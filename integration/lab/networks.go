package lab

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

//go:embed networks/*.yaml
var networks embed.FS

// BuiltIn returns the names of the networks that come with the program.
func BuiltIn() []string {
	entries, err := networks.ReadDir("networks")
	if err != nil {
		panic("lab: the built-in networks are missing: " + err.Error())
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Load reads a network from a file, or the built-in one of that name if there is no such file. A lab without a name of
// its own is called after it.
func Load(name string) (*Network, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		var builtIn error
		if data, builtIn = networks.ReadFile("networks/" + name + ".yaml"); builtIn != nil {
			return nil, fmt.Errorf("there is no network file %s, and no built-in network of that name; those are %s", name, strings.Join(BuiltIn(), ", "))
		}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	n, err := Parse(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
