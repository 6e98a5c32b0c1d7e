package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// errNoPackage is returned when the configured package sources have no such package.
var errNoPackage = errors.New("not in the package sources of this machine")

// run runs a program and gives what it printed.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, said bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return out.String(), nil
}

// A debianPackage is one version of a package in the sources.
type debianPackage struct{ name, version string }

// newestKernel finds the newest Debian kernel image of a series, such as 6.1,
// in the flavour for virtual machines.
func newestKernel(ctx context.Context, series string) (debianPackage, error) {
	image := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `[.][-.+0-9a-z]*-cloud-amd64$`)
	return newest(ctx, "linux-image-"+series+".", image.MatchString)
}

// newest finds, among packages whose names begin with prefix and match, the
// highest version.
func newest(ctx context.Context, prefix string, match func(name string) bool) (best debianPackage, err error) {
	found, err := run(ctx, "", "apt-cache", "pkgnames", prefix)
	if err != nil {
		return best, err
	}
	var names []string
	for name := range strings.FieldsSeq(found) {
		if match(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return best, errNoPackage
	}
	table, err := run(ctx, "", "apt-cache", append([]string{"madison"}, names...)...)
	if err != nil {
		return best, err
	}
	for line := range strings.Lines(table) {
		fields := strings.Split(line, "|")
		if len(fields) < 3 || !strings.Contains(fields[2], "Packages") {
			continue
		}
		p := debianPackage{strings.TrimSpace(fields[0]), strings.TrimSpace(fields[1])}
		if best.name == "" || exec.CommandContext(ctx, "dpkg", "--compare-versions", p.version, "gt", best.version).Run() == nil {
			best = p
		}
	}
	if best.name == "" {
		return best, errNoPackage
	}
	return best, nil
}

// unpack downloads a package and unpacks it below cache, once. It installs nothing.
func (p debianPackage) unpack(ctx context.Context, cache string) (dir string, err error) {
	dir = filepath.Join(cache, p.name+"_"+strings.ReplaceAll(p.version, ":", "_"))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	work, err := os.MkdirTemp(cache, "unpack-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if _, err := run(ctx, work, "apt-get", "download", "-q", p.name+"="+p.version); err != nil {
		return "", fmt.Errorf("%w; does `apt-get update` help?", err)
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("apt-get download %s left %q: %w", p.name, files, err)
	}
	tree := filepath.Join(work, "tree")
	if _, err := run(ctx, "", "dpkg-deb", "-x", files[0], tree); err != nil {
		return "", err
	}
	return dir, os.Rename(tree, dir)
}

// refresh fetches the lists of packages, which root may do.
func refresh(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return nil
	}
	_, err := run(ctx, "", "apt-get", "update", "-q")
	return err
}

const emulator = "qemu-system-x86_64"

// needEmulator finds QEMU, and installs Debian's as root.
func needEmulator(ctx context.Context) error {
	if _, err := exec.LookPath(emulator); err == nil {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("QEMU is missing: apt-get install qemu-system-x86")
	}
	fmt.Println("QEMU is missing: installing Debian's package qemu-system-x86")
	if err := refresh(ctx); err != nil {
		return err
	}
	_, err := run(ctx, "", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y", "--no-install-recommends", "qemu-system-x86")
	return err
}

// A kernelImage is what of an unpacked kernel package is used.
type kernelImage struct {
	series, version string
	image           string // path
	modules         *moduleTree
}

// getKernel brings the newest kernel of a series here.
func getKernel(ctx context.Context, series, cache string) (k kernelImage, err error) {
	p, err := newestKernel(ctx, series)
	if err != nil {
		return k, err
	}
	dir, err := p.unpack(ctx, cache)
	if err != nil {
		return k, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return k, fmt.Errorf("%s holds the images %q: %w", p.name, images, err)
	}
	k = kernelImage{series: series, image: images[0], version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	trees, err := filepath.Glob(filepath.Join(dir, "*", "modules", k.version))
	if err == nil && len(trees) == 0 {
		trees, err = filepath.Glob(filepath.Join(dir, "usr", "*", "modules", k.version))
	}
	if err != nil || len(trees) != 1 {
		return k, fmt.Errorf("%s holds the modules %q: %w", p.name, trees, err)
	}
	k.modules, err = readModules(trees[0])
	return k, err
}

// getShell brings a busybox that needs no libraries here: sh, cat and the few
// others that tests run inside nodes.
func getShell(ctx context.Context, cache string) (path string, err error) {
	p, err := newest(ctx, "busybox-static", func(name string) bool { return name == "busybox-static" })
	if err != nil {
		return "", fmt.Errorf("busybox-static: %w", err)
	}
	dir, err := p.unpack(ctx, cache)
	if err != nil {
		return "", err
	}
	for _, name := range []string{"bin/busybox", "usr/bin/busybox"} {
		if path = filepath.Join(dir, name); isFile(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s holds no busybox", p.name)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
