// Package disk is the state directory: small private files that are there
// whole or not at all, also after a crash, and that nobody else can read.
//
// Directories are 0700, files 0600, all owned by the user that runs meshd;
// anything wider is refused with the command that repairs it. Every name is
// resolved through os.Root and no symbolic link is followed, so nothing
// outside the directory is read or written. One process at a time has it open.
//
// It is a package of its own because two adapters that may not import each
// other, mesh/keyring and store/cache, keep their files by these same rules.
package disk
