package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// wanted are the modules that the tests and the mesh need, by name or pattern;
// the kernel cannot load any by itself. What they need in their turn is found
// in them.
var wanted = []string{
	"wireguard", "tun", "veth", "bridge", "dummy", "vrf",
	"sch_netem", "sch_tbf", "sch_ingress", "act_mirred",
	"nf_tables", "nft_*", "nf_conntrack_netlink", "nf_log_syslog",
	"xfrm_user", "inet_diag", "tcp_diag", "udp_diag",
}

// A moduleTree is lib/modules/VERSION of a kernel package.
type moduleTree struct {
	dir     string
	files   map[string]string // name: path of the file
	builtin map[string]bool
}

// moduleName is how the kernel calls a module of that file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func readModules(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, files: make(map[string]string), builtin: make(map[string]bool)}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for file := range strings.Lines(string(list)) {
		t.builtin[moduleName(strings.TrimSpace(file))] = true
	}
	return t, filepath.WalkDir(filepath.Join(dir, "kernel"), func(file string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			t.files[moduleName(file)] = file
		}
		return err
	})
}

// A module is one that can be given to the kernel as it is.
type module struct {
	name string
	data []byte // an ELF object
}

// load gives modules, by name or pattern, and all that they depend on, each
// after what it depends on. Those that are built in are left out, those that
// this kernel does not have are named in missing.
func (t *moduleTree) load(ctx context.Context, patterns []string) (modules []module, missing []string, err error) {
	seen := make(map[string]bool)
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] || t.builtin[name] {
			return nil
		}
		seen[name] = true
		file, ok := t.files[name]
		if !ok {
			missing = append(missing, name)
			return nil
		}
		data, err := decompress(ctx, file)
		if err != nil {
			return err
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		modules = append(modules, module{name, data})
		return nil
	}
	for _, pattern := range patterns {
		names := []string{pattern}
		if strings.Contains(pattern, "*") {
			names = slices.DeleteFunc(slices.Sorted(maps.Keys(t.files)), func(name string) bool {
				match, err := path.Match(pattern, name)
				return err != nil || !match
			})
		}
		for _, name := range names {
			if err := visit(name); err != nil {
				return nil, nil, err
			}
		}
	}
	return modules, missing, nil
}

// decompress gives a module as an ELF object.
func decompress(ctx context.Context, file string) ([]byte, error) {
	program := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[filepath.Ext(file)]
	if program == "" {
		return os.ReadFile(file)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "-dc", file)
	cmd.Stderr = &stderr
	data, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w: %s; is %s installed?", file, err, bytes.TrimSpace(stderr.Bytes()), program)
	}
	return data, nil
}

// dependencies reads the modules that a module's symbols are from: the field
// "depends" of its section .modinfo, from which depmod makes modules.dep too.
func dependencies(object []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo; this is no kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if value, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(value) > 0 {
			return strings.Split(strings.ReplaceAll(string(value), "-", "_"), ","), nil
		}
	}
	return nil, nil
}
