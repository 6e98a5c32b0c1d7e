package api

import (
	"cmp"
	"fmt"
	"runtime/debug"
)

// version is what a package calls itself; the linker sets it when it builds one.
var version string

// BuildVersion describes the running program, as the Go linker recorded it.
func BuildVersion() VersionInfo {
	v := VersionInfo{Version: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Go = info.GoVersion
	v.Version = cmp.Or(version, info.Main.Version, v.Version)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

// String gives the version on one line.
func (v VersionInfo) String() string {
	s := v.Version
	if v.Revision != "" {
		s += " " + v.Revision[:min(12, len(v.Revision))]
	}
	if v.Modified {
		s += " modified"
	}
	return fmt.Sprintf("%s (%s)", s, v.Go)
}
